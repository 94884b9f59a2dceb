"""Networks under the tensor names of the official releases. They know nothing of diffusion, files or settings."""
