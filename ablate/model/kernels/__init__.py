"""How attention and matrix products are computed, never what they compute. Importing this package registers every
kernel."""

from ablate.model.kernels import cpu, flex, reference, sdpa, varlen  # noqa: F401
from ablate.model.kernels.kernel import KERNELS, Kernel, Place, Scores, check_kernel, choose_kernel

__all__ = ["KERNELS", "Kernel", "Place", "Scores", "check_kernel", "choose_kernel"]
