"""How N models are trained at once."""

from swamp.particles.backend import Backend, Progress, Silent
from swamp.particles.particle import Particle, mean_of
from swamp.particles.sequential import Sequential, rewind
from swamp.particles.ticket import Ticket

__all__ = ["Backend", "Particle", "Progress", "Sequential", "Silent", "Ticket", "mean_of", "rewind"]
