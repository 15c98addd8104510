"""Makes a Qdrant database in local mode with two collections, as a store of patterns has them.

python qdrant_collections.py FOLDER
"""

from __future__ import annotations

import sys

from qdrant_client import QdrantClient, models

CODE = [
    {"pattern_name": "NodeSumReducer", "node_types": ["Reducer"], "code": "total = sum(parts)"},
    {"pattern_name": "NodeRankCompute", "node_types": ["Compute"], "code": "best = max(scores)"},
    {"pattern_name": "Placeholder", "code": "raise NotImplementedError"},
]
EXECUTION = [
    {"title": "nightly import", "description": "What ran, in which order, and for how long. " * 3},
    {"title": "failover", "examples": ["429", "529"], "metadata": {"runs": 40, "failed": 2}},
]

client = QdrantClient(path=sys.argv[1])
for name, payloads in (("code_patterns", CODE), ("execution_patterns", EXECUTION)):
    client.create_collection(
        name, vectors_config=models.VectorParams(size=2, distance=models.Distance.COSINE)
    )
    client.upsert(
        name,
        [
            models.PointStruct(id=number, vector=[1.0, 0.0], payload=payload)
            for number, payload in enumerate(payloads, 1)
        ],
    )
client.close()
