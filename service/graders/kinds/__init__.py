"""What each kind of grader is: one module each, listed in ``service.graders.registry``."""
