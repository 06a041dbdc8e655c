"""Does the search help on polymers it never saw?"""
