"""Small public files that change a model or teach it a word: LoRA and its kin, textual inversion."""
