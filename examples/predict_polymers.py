# %% [markdown]
# # From a fine-tuned model to χ(T) of your own polymers
#
# Set `MODEL` below and run it cell by cell in an editor that supports `# %%` cells, or as a whole:
# `python examples/predict_polymers.py MODEL.pt`. The model is the file that `chitransfer finetune` writes.

# %%
import argparse
import sys

from chitransfer.errors import ChitransferError
from chitransfer.predict import Predictor

MODEL = "results/multitask_TIME/checkpoints/best_model.pt"
if __name__ == "__main__" and "ipykernel" not in sys.modules:
    parser = argparse.ArgumentParser(description="Predict χ(T) of a few polymers.")
    parser.add_argument("model", nargs="?", default=MODEL, help="best_model.pt of `chitransfer finetune`")
    MODEL = parser.parse_args().model
try:
    predictor = Predictor.load(MODEL)
except ChitransferError as error:
    sys.exit(f"ERROR: {error}; give the one that `chitransfer finetune` wrote: examples/predict_polymers.py MODEL.pt")

# %% [markdown]
# A polymer is its repeat unit with two `*`. The prediction does not depend on where the chain is cut.

# %%
same = predictor.predict(["*CCO*", "*OCC*", "*CCOCCO*"])
print(same[["SMILES", "chi", "chi_low", "chi_high", "p_soluble"]].to_string(index=False))
assert same["chi"].nunique() == 1  # noqa: S101

# %% [markdown]
# Several temperatures (kelvin) at once, with the 90 % interval of each. `A_K` and `B` give χ(T) = A/T + B.

# %%
polymers = {"poly(vinyl alcohol)": "*CC(*)O", "poly(acrylamide)": "*CC(*)C(N)=O", "polystyrene": "*CC(*)c1ccccc1"}
frame = predictor.predict(list(polymers.values()), temperature=[298.15, 350.0], solvent="O")
frame.insert(0, "polymer", list(polymers))
print(frame[["polymer", "chi_298.15K", "chi_350K", "A_K", "B", "p_soluble", "soluble"]].to_string(index=False))

# %% [markdown]
# Before you trust a number, check the applicability domain: the nearest measured polymer, how similar it is, and what
# lies outside the range the model was tested on.

# %%
print(frame[["polymer", "nearest_polymer", "similarity", "in_domain", "domain_note"]].to_string(index=False))

# %% [markdown]
# A row that cannot be predicted stays in its place, with the reason.

# %%
print(predictor.predict(["*CC(*)O", "CCO"])[["SMILES", "chi", "problem"]].to_string(index=False))
