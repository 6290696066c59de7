"""Text: sentences to classify, to rate, or to go on with."""

from swamp.tasks.text.reviews import movie_reviews, movie_reviews_rating, movie_reviews_text

__all__ = ["movie_reviews", "movie_reviews_rating", "movie_reviews_text"]
