"""Latents: a store's images encoded once by a VAE, into a memory-mapped store of their own."""
