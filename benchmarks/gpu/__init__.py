"""Is a GPU fit for a run, and what does a run take there? Real sessions of train.py on the cards at hand."""
