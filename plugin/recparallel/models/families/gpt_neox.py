"""GPT-NeoX (Pythia): a dropout stands between the embedding and the blocks."""

from recparallel.models.trunk import Trunk


class GPTNeoXTrunk(Trunk):
    """Where GPT-NeoX keeps its parts."""

    def locate(self) -> tuple[str, str, str, str]:
        return "gpt_neox.embed_in", "gpt_neox.layers", "gpt_neox.final_layer_norm", "gpt_neox.rotary_emb"

    def stored_name(self, name: str) -> str:
        return name.replace("lm_head.", "embed_out.", 1) if name.startswith("lm_head.") else name

    @property
    def embedding_dropout(self) -> float:
        return float(self.config.hidden_dropout)
