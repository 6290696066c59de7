import torch
import transformers

import swamp

sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
model = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=100, **sizes))
data = {"input_ids": torch.randint(100, (256, 12)), "labels": torch.randint(2, (256,))}
task = swamp.Task.custom(data, lambda model, batch: model(**batch).loss, lambda model: {"loss": model(**data).loss})
training = swamp.Training(epochs=4, batch_size=32, lr=0.001, optimizer="adamw")
print(swamp.prune(model, task, sparsity=0.8, particles=2, cycles=2, training=training))
