"""Odd-one-out trials over the operator's own photos: what is asked, who is asked what, and what they answered."""
