"""One training step for any loss and any optax optimizer, and the loop, checkpoints and looks around it."""

from jaxloss.train.batches import clean as clean
from jaxloss.train.batches import pad_batch as pad_batch
from jaxloss.train.checkpoints import restore as restore
from jaxloss.train.checkpoints import save as save
from jaxloss.train.checkpoints import saved_steps as saved_steps
from jaxloss.train.diagnosis import Diagnosis as Diagnosis
from jaxloss.train.diagnosis import diagnose as diagnose
from jaxloss.train.extras import UpdateContext as UpdateContext
from jaxloss.train.fit import Fitted as Fitted
from jaxloss.train.fit import evaluate as evaluate
from jaxloss.train.fit import fit as fit
from jaxloss.train.learning_rate import LearningRateCurve as LearningRateCurve
from jaxloss.train.learning_rate import find_learning_rate as find_learning_rate
from jaxloss.train.objective import Aux as Aux
from jaxloss.train.precision import DynamicLossScale as DynamicLossScale
from jaxloss.train.recompiles import RecompilationWarning as RecompilationWarning
from jaxloss.train.state import Metrics as Metrics
from jaxloss.train.state import State as State
from jaxloss.train.step import TrainStep as TrainStep
from jaxloss.train.step import make_train_step as make_train_step
from jaxloss.train.tally import Log as Log
