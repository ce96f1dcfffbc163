"""Small graphs in PyTorch Geometric's own loader."""

import sys

import torch
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader


def graph(number):
    """Return a graph of ten to thirty nodes."""
    nodes = 10 + number % 21
    edges = torch.randint(0, nodes, (2, 4 * nodes))
    return Data(x=torch.rand(nodes, 16), edge_index=edges, y=torch.tensor([number % 2]))


if __name__ == "__main__":
    batches, epochs = int(sys.argv[1]), int(sys.argv[2])
    torch.manual_seed(0)
    graphs = [graph(number) for number in range(32 * batches)]
    loader = DataLoader(graphs, batch_size=32, shuffle=True)
    for _ in range(epochs):
        for batch in loader:
            pass
