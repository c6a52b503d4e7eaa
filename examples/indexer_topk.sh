# The shipped input: 4096 tokens of a real text as queries, 12 heads of 32; 1024 keys, each for 4 tokens.
data=examples/data
tributary info
tributary indexer-topk --query $data/query.npy --key $data/key.npy --weights $data/weights.npy \
  --top-k 64 --causal-ratio 4 --dtype bf16 --indices indices.npy --scores scores.npy
# The same once more, four keys for each query, in the order of the text; a report for machines on stdout.
tributary indexer-topk --query $data/query.npy --key $data/key.npy --weights $data/weights.npy \
  --top-k 4 --causal-ratio 4 --order index --indices best.npy --json
