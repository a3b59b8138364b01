"""An upstream to features, once: what each task keeps of an utterance, in memory or on disk."""
