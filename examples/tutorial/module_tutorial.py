"""Define, load, save and run a Module: `python examples/tutorial/module_tutorial.py`."""

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

import ark_dist as ark

try:
    import torch  # type: ignore[import-not-found,unused-ignore]  # optional: a peer to compare with
except ImportError:
    torch = None  # type: ignore[assignment,unused-ignore]  # without it NumPy computes the truth

Array = npt.NDArray[np.generic]

# Define the parameters of the model
batch_size = 1
seq_len = 64
d_model = 512
d_ff = 2048
LAYERNORM_EPS = 1e-5


class SubModuleARK(ark.Module):
    def __init__(self) -> None:
        super().__init__()
        # Define the parameters of the submodule
        self.weight_2 = ark.Parameter(ark.tensor([d_ff, d_model], ark.FP16))

    def forward(self, inputs: ark.Tensor) -> ark.Tensor:
        # Perform the forward pass of the submodule
        return ark.matmul(inputs, self.weight_2)


class TestModelARK(ark.Module):
    def __init__(self) -> None:
        super().__init__()
        # Define the parameters of the module
        self.weight_1 = ark.Parameter(ark.tensor([d_model, d_ff], ark.FP16))
        # Create a submodule of the module
        self.submodule = SubModuleARK()

    def forward(self, inputs: ark.Tensor) -> ark.Tensor:
        # Perform the forward pass of the model
        middle_result = ark.matmul(inputs, self.weight_1, is_relu=True)
        middle_result1 = self.submodule(middle_result)
        output = ark.add(middle_result1, inputs)
        return ark.layernorm(output)


def torch_ground_truth(state_dict: dict[str, Array], inputs: npt.NDArray[np.float32]) -> Array:
    """Compute the same model with PyTorch, in float32."""
    nn = torch.nn

    class SubModulePytorch(nn.Module):  # type: ignore[name-defined,misc,unused-ignore]  # optional
        def __init__(self) -> None:
            super().__init__()
            self.weight_2 = nn.Parameter(torch.FloatTensor(d_ff, d_model))

        def forward(self, inputs: "torch.Tensor") -> "torch.Tensor":
            return torch.matmul(inputs, self.weight_2)

    class TestModelPytorch(nn.Module):  # type: ignore[name-defined,misc,unused-ignore]  # optional
        def __init__(self) -> None:
            super().__init__()
            self.weight_1 = nn.Parameter(torch.FloatTensor(d_model, d_ff))
            self.submodule = SubModulePytorch()

        def forward(self, inputs: "torch.Tensor") -> "torch.Tensor":
            output = torch.matmul(inputs, self.weight_1)
            output = nn.ReLU()(output)
            output = self.submodule(output)
            return nn.LayerNorm(d_model)(output + inputs)

    torch_model = TestModelPytorch()
    # Convert the numpy.ndarray type state_dict to torch.Tensor type state_dict
    torch_model.load_state_dict(ark.convert_state_dict(state_dict, "torch"))
    result: Array = torch_model(torch.from_numpy(inputs)).detach().numpy()
    return result


def numpy_ground_truth(state_dict: dict[str, Array], inputs: npt.NDArray[np.float32]) -> Array:
    """Compute the same model with NumPy, in float32."""
    weight_1 = state_dict["weight_1"].astype(np.float32)
    weight_2 = state_dict["submodule.weight_2"].astype(np.float32)
    output = np.maximum(inputs @ weight_1, 0) @ weight_2 + inputs
    centered = output - output.mean(axis=-1, keepdims=True)
    variance = np.mean(centered * centered, axis=-1, keepdims=True)
    return np.asarray(centered / np.sqrt(variance + LAYERNORM_EPS))


def main() -> None:
    # Initialize the runtime
    runtime = ark.Runtime()
    # Create an input tensor
    input_tensor = ark.tensor([batch_size, seq_len, d_model], ark.FP16)

    # Create a module and perform the forward pass
    ark_model = TestModelARK()
    output_tensor = ark_model(input_tensor)

    # Compile and launch the kernel
    runtime.launch()

    # Initialize the input tensor
    rng = np.random.default_rng(0)
    input_tensor_host = ((rng.random((batch_size, seq_len, d_model)) - 0.5) * 0.1).astype(
        np.float16
    )
    input_tensor.from_numpy(input_tensor_host)

    # Initialize the parameters of the module using a numpy state_dict
    weight_1_host = ((rng.random((d_model, d_ff)) - 0.5) * 0.1).astype(np.float16)
    weight_2_host = ((rng.random((d_ff, d_model)) - 0.5) * 0.1).astype(np.float16)
    state_dict: dict[str, Array] = {
        "weight_1": weight_1_host,
        "submodule.weight_2": weight_2_host,
    }

    # Load model parameters
    ark_model.load_state_dict(state_dict)

    # Save them to a file, and load that
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "test_model.pt"
        ark.save(ark_model.state_dict(), path)
        ark_model.load_state_dict(ark.load(path))

    # Run the model
    runtime.run()

    # Copy the output tensor from device to host
    output_tensor_host = output_tensor.to_numpy()

    # For simplicity, we use float32 to compute the ground truth
    ground_truth = numpy_ground_truth if torch is None else torch_ground_truth
    gt = ground_truth(state_dict, input_tensor_host.astype(np.float32)).astype(np.float16)

    # Test if the result is correct
    max_error = np.max(np.abs(output_tensor_host - gt))
    avg_error = np.mean(np.abs(output_tensor_host - gt))

    # Test if the parameters are the same
    ark_state_dict = ark_model.state_dict()
    for k, v in state_dict.items():
        np.testing.assert_allclose(v, ark_state_dict[k])  # type: ignore[arg-type]  # numbers

    runtime.stop()

    print("ARK module test")
    print(
        "batch_size:",
        batch_size,
        "seq_len:",
        seq_len,
        "d_model:",
        d_model,
        "d_ff:",
        d_ff,
    )
    print("max error: ", max_error, "avg error: ", avg_error)


if __name__ == "__main__":
    main()
