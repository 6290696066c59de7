"""Text tasks: classification, regression and language modelling."""

from swamp.datasets.text.reviews import movie_reviews, movie_reviews_rating, movie_reviews_text
from swamp.datasets.text.table_files import GLUE_TASKS, text_folder, text_folder_number, text_folder_text

__all__ = [
    "GLUE_TASKS",
    "movie_reviews",
    "movie_reviews_rating",
    "movie_reviews_text",
    "text_folder",
    "text_folder_number",
    "text_folder_text",
]
