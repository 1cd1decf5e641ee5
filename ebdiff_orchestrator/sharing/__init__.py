"""A finished ensemble for others: a folder that plain diffusers opens, a model card, and the hub."""
