"""Mathematics that several methods share: Fisher information, Gaussians, teachers, a VAE, paths, subspaces."""
