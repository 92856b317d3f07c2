from .likelihood import importance_sampled, posterior_sampled
from .model import VAE, vae_frey, vae_mnist
from .objective import VariationalBound

__all__ = ["VAE", "VariationalBound", "importance_sampled", "posterior_sampled", "vae_frey", "vae_mnist"]
