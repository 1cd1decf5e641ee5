"""Bounds of what plans may ask for, as plain numbers: the decoding process starts without pydantic."""

MAX_PIXELS = 64_000_000  # of one image, by default: 8,000 x 8,000; in memory four bytes each, and a copy or two
MOST_PIXELS = 178_956_970  # where Pillow itself refuses

MOST_TIMESTEPS = 1_000_000
MOST_STEPS = 10**12
MOST_CHANNELS = 65536
MOST_IMAGES = 10**7  # of a batch, or of a sampling
MOST_WORKERS = 4096  # of a region; CPUs and GPUs too
MOST_GUIDANCE = 1000
MOST_WAVELET_PX = 256  # the side of images whose wavelet packets are compared: the paper's
MANY = 10**6  # of whatever else is counted
LARGE = 1e12  # what is measured and has no bound of its own
