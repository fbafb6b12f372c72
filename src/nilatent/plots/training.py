"""How the model learned: loss and unexplained variance by epoch, with the epoch that was kept."""

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nilatent.plots import style
