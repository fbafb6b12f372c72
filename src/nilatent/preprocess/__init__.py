"""Preparation: raw T1 scans, or grey-matter maps that already exist, to checked maps on one grid in MNI space."""
