"""Numbers are computed as in a training, wherever a test stands among the others."""

from trainer.cpu import prepare_process

# A test that trains would switch subnormal numbers off for those after it in its process; so they are off for all.
# Hypothesis then refuses `floats` that may draw them at once, not only in some orders of the tests.
prepare_process()
