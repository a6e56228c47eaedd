"""What a trained model looks at, and where it is wrong."""

from jaxfast.interpret.classification import Interpretation as Interpretation
from jaxfast.interpret.classification import TopLoss as TopLoss
from jaxfast.interpret.heatmap import Heatmap as Heatmap
from jaxfast.interpret.heatmap import grad_cam as grad_cam
