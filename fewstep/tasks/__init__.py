"""What a model is asked for: conditions of samples and of training examples, what guidance drops, and how outputs become pixels."""
