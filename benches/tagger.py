"""W7 in PyTorch: the sentences, batches, order and initial weights of `workloads.rs`, packed sequences.

    benches/compare.py w7 -- python benches/tagger.py
"""
import json
import statistics
import time

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

VOCABULARY, EMBEDDING, HIDDEN, TAGS, BATCH = 5000, 64, 64, 9, 32


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, EMBEDDING)
        self.lstm = nn.LSTM(EMBEDDING, HIDDEN, bidirectional=True)
        self.output = nn.Linear(2 * HIDDEN, TAGS)

    def forward(self, words, lengths):
        packed = pack_padded_sequence(self.embedding(words), lengths, enforce_sorted=False)
        return self.output(pad_packed_sequence(self.lstm(packed)[0])[0])


torch.manual_seed(777)
lengths = (14 + 5 * torch.randn(100 * BATCH)).round().clamp(2, 40).int().tolist() + [256]
words = [torch.randint(VOCABULARY - 1, (n,)) + 1 for n in lengths]
order = sorted(torch.randperm(len(words)).tolist(), key=lambda i: lengths[i])
buckets = [order[i:i + BATCH] for i in range(0, len(order), BATCH)]
batches = []
for i in torch.randperm(len(buckets)).tolist():
    rows = [words[j] for j in buckets[i]]
    tags = pad_sequence([row % TAGS for row in rows], padding_value=-100)
    batches.append((pad_sequence(rows), tags, torch.tensor([len(row) for row in rows])))
model = Tagger()
optimizer = torch.optim.Adam(model.parameters(), 1e-3)


def epoch():
    losses = []
    for words, tags, lengths in batches:
        loss = cross_entropy(model(words, lengths).flatten(0, 1), tags.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return statistics.mean(losses)


first_loss = epoch()
times = []
while len(times) < 3 or sum(times) < 4:
    start = time.perf_counter()
    epoch()
    times.append(time.perf_counter() - start)
times = sorted(1e3 * t / len(batches) for t in times)
vectors = torch.backends.cpu.get_cpu_capability()
print(json.dumps({"vectors": vectors, "median_ms": statistics.median(times), "min_ms": times[0], "runs": len(times), "first_loss": first_loss}))
