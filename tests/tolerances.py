"""Every tolerance of the parity tests, with its reason.

Errors are relative to the largest |reference| unless said otherwise.
"""

FORWARD = 1e-5  # fp32 network against the reference's fp32 network
LOSS = 1e-5  # with the alpha_bar table rounded as the reference rounds it
TRAJECTORY = {"torch": 1e-4, "mlx": 1e-3}  # errors of up to 1000 steps add up
FLOAT64_TABLE = 1e-3  # losses and trajectories with our float64 table instead
BASE_SCHEDULE = 1e-6  # absolute; the reference rounds to float32
SHIFTED_SCHEDULE = 1e-5  # absolute; the reference shifts in float32
VDM_WEIGHTS = 1e-3  # relative; float32 cancellation in the reference, 8e-4 at the last step
# Of the sum of the learning rates, which is about how far Adam moves a weight, whatever its
# gradient: an absolute bound would only fit one rate. Held where |grad| is at least
# TRAIN_GRAD_FLOOR in every step; 7e-4 with MLX, 2e-4 to 5e-4 with torch, by processor.
TRAIN_MOVED = 5e-3
TRAIN_WEIGHTS = 5e-5  # absolute, of MLX against torch at one rate, for the same weights
# Of the largest |grad| of the step, after clipping. Adam divides each gradient by its own size, so
# it turns rounding noise into full steps where the true gradient is zero (biases in front of a
# norm) or nearly zero. Noise depends on the processor and reaches 1e-6 of the largest. Elements
# below the floor, 0.4 % of them, are held to twice the sum of the steps: two programs may go in
# opposite directions.
TRAIN_GRAD_FLOOR = 1e-5
TRAIN_SCALARS = 1e-5  # relative: loss and gradient norm per step
# Worst PSNR in dB of a prediction of a converted package against torch, per level and noise level.
PACKAGE_FP32 = 65.0  # fp16 weights, exact activations: 70 with random weights
PACKAGE_FP16 = 60.0  # every stored value rounded to fp16
PACKAGE_RANDOM = 57.0  # the same with random weights, whose values spread further
BUNDLE_PICTURE = 50.0  # of pictures in [-1, 1] from the same seed, peak 2
REWRITE = 70.0  # dB in fp32: the network in layers for the Neural Engine against itself; 110 or so
# MLX against torch in float64 (its Linux wheel has no float64 convolution to be its own oracle).
FORWARD_OVER_TORCH = 3.0  # error of MLX in fp32 over that of torch in fp32
GRADIENT = 1e-5  # norm of the error of a weight's gradient over the norm of the gradient
GRADIENT_NORM_FLOOR = 1e-4  # of the largest norm; smaller gradients are measured against this
MLX_PICTURE = 60.0  # dB, worst of 8 pictures after 25 steps against torch, peak 2
# dB, pictures of 3 steps that begin with others, random weights, fp32 against torch, peak 2.
PICTURE_IN = 100.0  # MLX
PICTURE_IN_BUNDLE = 60.0  # the executor; weights of a bundle are fp16
REDUCED_PICTURE = {"bf16": 20.0, "fp16": 35.0}  # dB, random weights, 10 steps, against fp32
# Absolute, of images in [-1, 1]: BOOT's recursion against joint DDIM.
BOOT_FP64 = 1e-10
BOOT_FP32 = 1e-5
BOOT_END_POINT = 0.05  # of the data's standard deviation: a tiny student after its training
