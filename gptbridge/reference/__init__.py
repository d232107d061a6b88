"""The oracle: a GPT and its optimizers in NumPy, to check backends and conversions against."""

from gptbridge.reference.gpt import ACTIVATIONS as ACTIVATIONS
from gptbridge.reference.gpt import Array as Array
from gptbridge.reference.gpt import Weights as Weights
from gptbridge.reference.gpt import logits as logits
from gptbridge.reference.gpt import logits_of_ranks as logits_of_ranks
from gptbridge.reference.gpt import loss_and_gradients as loss_and_gradients
from gptbridge.reference.gpt import token_losses as token_losses
from gptbridge.reference.optimizer import adamw_step as adamw_step
from gptbridge.reference.optimizer import clip as clip
from gptbridge.reference.optimizer import gradient_norm as gradient_norm
from gptbridge.reference.optimizer import sgd_step as sgd_step
