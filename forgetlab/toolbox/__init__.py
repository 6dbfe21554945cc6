"""Mathematics that several methods share: Fisher information, Gaussians, teachers, path integrals, projections."""
