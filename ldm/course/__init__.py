"""What the lessons are made with: exercises that are graded, claims that are measured, pictures.

from ldm.course import check, claim, fast, pictures
"""

from ldm.course.claims import Claim, claim, fast
from ldm.course.exercise import Exercise, check

__all__ = ["Claim", "Exercise", "check", "claim", "fast"]
