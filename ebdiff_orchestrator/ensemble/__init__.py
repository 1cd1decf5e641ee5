"""The router over the experts, and the pipeline around it. Imports neither ray nor the driver."""
