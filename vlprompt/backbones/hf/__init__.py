"""Language models of transformers as frozen towers, and adapters of PEFT."""
