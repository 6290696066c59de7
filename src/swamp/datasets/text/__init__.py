"""Text: sentences to classify, to rate, or to go on with."""

from swamp.datasets.text.glue import GLUE_TASKS
from swamp.datasets.text.reviews import movie_reviews, movie_reviews_rating, movie_reviews_text
from swamp.datasets.text.tables import text_folder, text_folder_number, text_folder_text

__all__ = [
    "GLUE_TASKS",
    "movie_reviews",
    "movie_reviews_rating",
    "movie_reviews_text",
    "text_folder",
    "text_folder_number",
    "text_folder_text",
]
