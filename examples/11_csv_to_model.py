"""A CSV file to a trained model: columns, text, missing values, and a split."""

import argparse
import csv
import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

from headrace import DataLoader, SourceError, stratified_split
from headrace.data import CSVDataset
from headrace.train import Trainer


def write_file(path):
    """Write real measurements of 569 tumours; every 50th row lacks one, as real tables do."""
    data = load_breast_cancer()
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*data.feature_names, "diagnosis"])
        for number, (row, target) in enumerate(zip(data.data, data.target, strict=True)):
            fields = [f"{value:g}" for value in row]
            if number % 50 == 49:
                fields[number % 30] = ""
            writer.writerow([*fields, data.target_names[target]])


def main(path, target):
    torch.manual_seed(0)
    try:
        CSVDataset(path, target=target)
    except SourceError as error:  # a missing value is an error until you say what it means
        print(f"SourceError: {str(error).replace(f'{path.parent}/', '')}")

    # As NaN, so that each can become the mean of its column: that of the training part.
    data = CSVDataset(path, target=target, missing=float("nan"))
    print(f"{len(data)} rows, {len(data.feature_names)} features, classes {data.classes}")
    x, y = data[0]
    print(f"first row: {x[:3]} ..., class {y}")

    train, validation, test = stratified_split(data, [0.6, 0.2, 0.2], labels=data.targets)
    known = torch.tensor(data.features[train.indices])
    mean = known.nanmean(0)
    spread = torch.where(known.isnan(), mean, known).std(0)

    def prepare(batch):
        """Fill what is missing and bring all columns to one size, for a whole batch at once."""
        features, targets = batch
        return (torch.where(features.isnan(), mean, features) - mean) / spread, targets

    def loader(part, **options):
        return DataLoader(part, batch_size=32, batch_transform=prepare, **options)

    model = nn.Sequential(nn.Linear(len(data.feature_names), 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    def accuracy(scores, targets):
        return (scores.argmax(1) == targets).float().mean()

    trainer = Trainer(model, nn.CrossEntropyLoss(), optimizer, metrics={"accuracy": accuracy})
    history = trainer.fit(loader(train, shuffle=True), loader(validation), epochs=5)
    last = history.epochs[-1]
    print(f"validation: loss {last['val_loss']:.4f}, accuracy {last['val_accuracy']:.3f}")
    result = trainer.evaluate(loader(test))
    print(f"test:       loss {result['loss']:.4f}, accuracy {result['accuracy']:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="a CSV file with a line of names")
    parser.add_argument("--target", default="diagnosis", help="the column to predict")
    options = parser.parse_args()
    if options.data:
        main(options.data, options.target)
    else:
        with tempfile.TemporaryDirectory() as folder:
            write_file(Path(folder, "tumours.csv"))
            main(Path(folder, "tumours.csv"), options.target)
