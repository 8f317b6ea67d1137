"""Every loss, by family: one module a family, its `__all__` the list of its losses."""

from jaxloss.losses.alignment import *
from jaxloss.losses.binary import *
from jaxloss.losses.contrastive import *
from jaxloss.losses.divergence import *
from jaxloss.losses.embedding import *
from jaxloss.losses.geometry import *
from jaxloss.losses.language import *
from jaxloss.losses.margin import *
from jaxloss.losses.multiclass import *
from jaxloss.losses.multilabel import *
from jaxloss.losses.noise_tolerant import *
from jaxloss.losses.probabilistic import *
from jaxloss.losses.ranking import *
from jaxloss.losses.ranking_surrogates import *
from jaxloss.losses.regression import *
from jaxloss.losses.robust import *
from jaxloss.losses.segmentation import *
from jaxloss.losses.sequence import *
from jaxloss.losses.transport import *
from jaxloss.losses.vocabulary import *
from jaxloss.losses.wrappers import *
