"""Works that the methods text cites, by the keys it writes in brackets."""

from nilatent.report.page import Reference

REFERENCES: dict[str, Reference] = {
    "aal": Reference(
        "Tzourio-Mazoyer N, et al. Automated anatomical labeling of activations in SPM. NeuroImage 2002;15:273-289.",
        "10.1006/nimg.2001.0978",
    ),
    "aal2": Reference(
        "Rolls ET, Joliot M, Tzourio-Mazoyer N. Implementation of a new parcellation of the orbitofrontal cortex in the "
        "automated anatomical labeling atlas. NeuroImage 2015;122:1-5.",
        "10.1016/j.neuroimage.2015.07.075",
    ),
    "adamw": Reference(
        "Loshchilov I, Hutter F. Decoupled weight decay regularization. ICLR 2019.", "10.48550/arXiv.1711.05101"
    ),
    "bids": Reference(
        "Gorgolewski KJ, et al. The brain imaging data structure, a format for organizing and describing outputs of "
        "neuroimaging experiments. Scientific Data 2016;3:160044.",
        "10.1038/sdata.2016.44",
    ),
    "deepbet": Reference(
        "Fisch L, et al. deepbet: Fast brain extraction of T1-weighted MRI using convolutional neural networks. "
        "Computers in Biology and Medicine 2024;179:108845.",
        "10.1016/j.compbiomed.2024.108845",
    ),
    "fdr": Reference(
        "Benjamini Y, Hochberg Y. Controlling the false discovery rate. Journal of the Royal Statistical Society B "
        "1995;57:289-300.",
        "10.1111/j.2517-6161.1995.tb02031.x",
    ),
    "freedman": Reference(
        "Freedman D, Lane D. A nonstochastic interpretation of reported significance levels. Journal of Business & "
        "Economic Statistics 1983;1:292-298.",
        "10.1080/07350015.1983.10509354",
    ),
    "haufe": Reference(
        "Haufe S, et al. On the interpretation of weight vectors of linear models in multivariate neuroimaging. NeuroImage "
        "2014;87:96-110.",
        "10.1016/j.neuroimage.2013.10.067",
    ),
    "expost": Reference(
        "Ghosh P, et al. From variational to deterministic autoencoders. ICLR 2020.", "10.48550/arXiv.1903.12436"
    ),
    "nadeau": Reference(
        "Nadeau C, Bengio Y. Inference for the generalization error. Machine Learning 2003;52:239-281.",
        "10.1023/A:1024068626366",
    ),
    "mmd": Reference(
        "Gretton A, et al. A kernel method for the two-sample problem. 2008 (Journal of Machine Learning Research "
        "2012;13:723-773).",
        "10.48550/arXiv.0805.2368",
    ),
    "kid": Reference(
        "Binkowski M, Sutherland DJ, Arbel M, Gretton A. Demystifying MMD GANs. ICLR 2018.", "10.48550/arXiv.1801.01401"
    ),
    "coverage": Reference(
        "Naeem MF, et al. Reliable fidelity and diversity metrics for generative models. ICML 2020.",
        "10.48550/arXiv.2002.09797",
    ),
    "copying": Reference(
        "Meehan C, Chaudhuri K, Dasgupta S. A non-parametric test to detect data-copying in generative models. AISTATS 2020.",
        "10.48550/arXiv.2004.05675",
    ),
    "mattes": Reference(
        "Mattes D, et al. PET-CT image registration in the chest using free-form deformations. IEEE Transactions on "
        "Medical Imaging 2003;22:120-128.",
        "10.1109/TMI.2003.809072",
    ),
    "mni": Reference(
        "Fonov V, et al. Unbiased average age-appropriate atlases for pediatric studies. NeuroImage 2011;54:313-327.",
        "10.1016/j.neuroimage.2010.07.033",
    ),
    "modulation": Reference(
        "Good CD, et al. A voxel-based morphometric study of ageing in 465 normal adult human brains. NeuroImage "
        "2001;14:21-36.",
        "10.1006/nimg.2001.0786",
    ),
    "n4": Reference(
        "Tustison NJ, et al. N4ITK: improved N3 bias correction. IEEE Transactions on Medical Imaging 2010;29:1310-1320.",
        "10.1109/TMI.2010.2046908",
    ),
    "ashburner": Reference(
        "Ashburner J, Friston KJ. Unified segmentation. NeuroImage 2005;26:839-851.", "10.1016/j.neuroimage.2005.02.018"
    ),
    "syn": Reference(
        "Avants BB, et al. Symmetric diffeomorphic image registration with cross-correlation. Medical Image Analysis "
        "2008;12:26-41.",
        "10.1016/j.media.2007.06.004",
    ),
    "tohka": Reference(
        "Tohka J, Zijdenbos A, Evans A. Fast and robust parameter estimation for statistical partial volume models in "
        "brain MRI. NeuroImage 2004;23:84-97.",
        "10.1016/j.neuroimage.2004.05.007",
    ),
    "ssim": Reference(
        "Wang Z, et al. Image quality assessment: from error visibility to structural similarity. IEEE Transactions on "
        "Image Processing 2004;13:600-612.",
        "10.1109/TIP.2003.819861",
    ),
    "vae": Reference("Kingma DP, Welling M. Auto-encoding variational Bayes. ICLR 2014.", "10.48550/arXiv.1312.6114"),
    "winkler": Reference(
        "Winkler AM, et al. Permutation inference for the general linear model. NeuroImage 2014;92:381-397.",
        "10.1016/j.neuroimage.2014.01.060",
    ),
    "freebits": Reference(
        "Kingma DP, et al. Improved variational inference with inverse autoregressive flow. NeurIPS 2016.",
        "10.48550/arXiv.1606.04934",
    ),
    "tc": Reference(
        "Chen RTQ, et al. Isolating sources of disentanglement in variational autoencoders. NeurIPS 2018.",
        "10.48550/arXiv.1802.04942",
    ),
    "capacity": Reference(
        "Burgess CP, et al. Understanding disentangling in beta-VAE. 2018.", "10.48550/arXiv.1804.03599"
    ),
    "infovae": Reference(
        "Zhao S, Song J, Ermon S. InfoVAE: balancing learning and inference in variational autoencoders. AAAI 2019.",
        "10.1609/aaai.v33i01.33015885",
    ),
    "lsgan": Reference(
        "Mao X, et al. Least squares generative adversarial networks. ICCV 2017.", "10.1109/ICCV.2017.304"
    ),
    "patchgan": Reference(
        "Isola P, et al. Image-to-image translation with conditional adversarial networks. CVPR 2017.",
        "10.1109/CVPR.2017.632",
    ),
    "msssim": Reference(
        "Wang Z, Simoncelli EP, Bovik AC. Multiscale structural similarity for image quality assessment. Asilomar 2003.",
        "10.1109/ACSSC.2003.1292216",
    ),
    "features": Reference(
        "Amir D, Weiss Y. Understanding and simplifying perceptual distances. CVPR 2021.",
        "10.1109/CVPR46437.2021.01205",
    ),
    "lin": Reference(
        "Lin LI. A concordance correlation coefficient to evaluate reproducibility. Biometrics 1989;45:255-268.",
        "10.2307/2532051",
    ),
    "bland": Reference(
        "Bland JM, Altman DG. Statistical methods for assessing agreement between two methods of clinical measurement. "
        "Lancet 1986;327:307-310.",
        "10.1016/S0140-6736(86)90837-8",
    ),
    "pls": Reference(
        "Wold S, Sjöström M, Eriksson L. PLS-regression: a basic tool of chemometrics. Chemometrics and "
        "Intelligent Laboratory Systems 2001;58:109-130.",
        "10.1016/S0169-7439(01)00155-1",
    ),
    "tsne": Reference(
        "Poličar PG, Stražar M, Zupan B. Embedding to reference t-SNE space addresses batch effects in "
        "single-cell classification. Machine Learning 2023;112:721-740.",
        "10.1007/s10994-021-06043-1",
    ),
    "umap": Reference(
        "McInnes L, Healy J, Melville J. UMAP: Uniform manifold approximation and projection for dimension "
        "reduction. 2018.",
        "10.48550/arXiv.1802.03426",
    ),
    "trust": Reference(
        "Venna J, Kaski S. Neighborhood preservation in nonlinear projection methods: an experimental study. "
        "ICANN 2001:485-491.",
        "10.1007/3-540-44668-0_68",
    ),
    "shap": Reference(
        "Lundberg SM, Lee SI. A unified approach to interpreting model predictions. NeurIPS 2017.",
        "10.48550/arXiv.1705.07874",
    ),
    "treeshap": Reference(
        "Lundberg SM, et al. From local explanations to global understanding with explainable AI for trees. "
        "Nature Machine Intelligence 2020;2:56-67.",
        "10.1038/s42256-019-0138-9",
    ),
    "besag": Reference(
        "Besag J, Clifford P. Sequential Monte Carlo p-values. Biometrika 1991;78:301-304.",
        "10.1093/biomet/78.2.301",
    ),
    "cubv": Reference(
        "Gorriz JM, et al. Is K-fold cross validation the best model selection method for machine learning? 2024.",
        "10.48550/arXiv.2401.16407",
    ),
    "sam": Reference(
        "Gorriz JM, et al. Statistical agnostic mapping: a framework in neuroimaging based on concentration "
        "inequalities. Information Fusion 2021;66:198-212.",
        "10.1016/j.inffus.2020.09.008",
    ),
    "sar": Reference(
        "Gorriz JM, et al. Statistical agnostic regression: a machine learning method to validate regression "
        "models. 2024.",
        "10.48550/arXiv.2402.15213",
    ),
    "focal": Reference(
        "Lin TY, et al. Focal loss for dense object detection. ICCV 2017.",
        "10.1109/ICCV.2017.324",
    ),
    "frank": Reference(
        "Frank E, Hall M. A simple approach to ordinal classification. ECML 2001:145-156.",
        "10.1007/3-540-44795-4_13",
    ),
    "varma": Reference(
        "Varma S, Simon R. Bias in error estimation when using cross-validation for model selection. BMC "
        "Bioinformatics 2006;7:91.",
        "10.1186/1471-2105-7-91",
    ),
    "combat": Reference(
        "Johnson WE, Li C, Rabinovic A. Adjusting batch effects in microarray expression data using empirical Bayes "
        "methods. Biostatistics 2007;8:118-127.",
        "10.1093/biostatistics/kxj037",
    ),
    "neurocombat": Reference(
        "Fortin JP, et al. Harmonization of multi-site diffusion tensor imaging data. NeuroImage 2017;161:149-170.",
        "10.1016/j.neuroimage.2017.08.047",
    ),
    "normative": Reference(
        "Marquand AF, et al. Understanding heterogeneity in clinical cohorts using normative models: beyond "
        "case-control studies. Biological Psychiatry 2016;80:552-561.",
        "10.1016/j.biopsych.2015.12.023",
    ),
    "ledoit": Reference(
        "Ledoit O, Wolf M. A well-conditioned estimator for large-dimensional covariance matrices. Journal of "
        "Multivariate Analysis 2004;88:365-411.",
        "10.1016/S0047-259X(03)00096-4",
    ),
    "laird": Reference(
        "Laird NM, Ware JH. Random-effects models for longitudinal data. Biometrics 1982;38:963-974.", "10.2307/2529876"
    ),
    "bernal": Reference(
        "Bernal-Rusiel JL, et al. Statistical analysis of longitudinal neuroimage data with linear mixed effects models. "
        "NeuroImage 2013;66:249-260.",
        "10.1016/j.neuroimage.2012.10.065",
    ),
    "shrout": Reference(
        "Shrout PE, Fleiss JL. Intraclass correlations: uses in assessing rater reliability. Psychological Bulletin "
        "1979;86:420-428.",
        "10.1037/0033-2909.86.2.420",
    ),
    "wu": Reference(
        "Wu CFJ. Jackknife, bootstrap and other resampling methods in regression analysis. Annals of Statistics "
        "1986;14:1261-1295.",
        "10.1214/aos/1176350142",
    ),
    "wolpert": Reference(
        "Wolpert DH. Stacked generalization. Neural Networks 1992;5:241-259.", "10.1016/S0893-6080(05)80023-1"
    ),
    "breiman": Reference("Breiman L. Stacked regressions. Machine Learning 1996;24:49-64.", "10.1007/BF00117832"),
    "strobl": Reference(
        "Strobl C, et al. Conditional variable importance for random forests. BMC Bioinformatics 2008;9:307.",
        "10.1186/1471-2105-9-307",
    ),
    "experts": Reference(
        "Wu M, Goodman N. Multimodal generative models for scalable weakly-supervised learning. NeurIPS 2018.",
        "10.48550/arXiv.1802.05335",
    ),
    "mixture": Reference(
        "Shi Y, Siddharth N, Paige B, Torr PHS. Variational mixture-of-experts autoencoders for multi-modal deep generative "
        "models. NeurIPS 2019.",
        "10.48550/arXiv.1911.03393",
    ),
    "mopoe": Reference(
        "Sutter TM, Daunhawer I, Vogt JE. Generalized multimodal ELBO. ICLR 2021.", "10.48550/arXiv.2105.02470"
    ),
    "ridge": Reference(
        "Hoerl AE, Kennard RW. Ridge regression: biased estimation for nonorthogonal problems. Technometrics 1970;12:55-67.",
        "10.1080/00401706.1970.10488634",
    ),
    "reuter": Reference(
        "Reuter M, Schmansky NJ, Rosas HD, Fischl B. Within-subject template estimation for unbiased longitudinal image "
        "analysis. NeuroImage 2012;61:1402-1418.",
        "10.1016/j.neuroimage.2012.02.084",
    ),
}
