"""Tokenised texts, padded by the collator of transformers, under its Trainer."""

import sys

import transformers
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import DataCollatorWithPadding, PreTrainedTokenizerFast


def rows(length):
    """Yield numbered words, twenty to one hundred a text."""
    for number in range(length):
        words = range(20 + number * 7919 % 81)
        ids = [3 + (word * 31 + number) % 900 for word in words]
        yield {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": number % 2}


if __name__ == "__main__":
    batches, epochs = int(sys.argv[1]), int(sys.argv[2])
    words = {"[PAD]": 0, "[UNK]": 1, **{f"w{n}": n for n in range(2, 1000)}}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="[UNK]")), pad_token="[PAD]"
    )
    config = transformers.BertConfig(
        vocab_size=1000,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=128,
    )
    transformers.Trainer(
        transformers.BertForSequenceClassification(config),
        transformers.TrainingArguments(
            output_dir=sys.argv[3],
            per_device_train_batch_size=32,
            num_train_epochs=epochs,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
        ),
        train_dataset=Dataset.from_list(list(rows(32 * batches))),
        data_collator=DataCollatorWithPadding(tokenizer),
    ).train()
