"""Add two tensors with Model and Executor: `python examples/tutorial/model_tutorial.py`."""

import numpy as np

import ark_dist as ark

# Initialize the runtime.
ark.init()

# Create a Model instance
model = ark.Model()

# Create two tensors
input = model.tensor(ark.Dims(32), ark.TensorType.FP16)
other = model.tensor(ark.Dims(32), ark.TensorType.FP16)

# Add input and other to get output tensor
output = model.add(input, other)

# Creating the executor schedules the model's tasks
exe = ark.Executor(0, 0, 1, model, "tutorial_model")

# Compile the kernel; an INFO line says where its source can be read
exe.compile()

# Initialize the input tensors
rng = np.random.default_rng(0)
input_np = rng.random((1, 32)).astype(np.float16)
other_np = rng.random((1, 32)).astype(np.float16)

exe.tensor_memcpy_host_to_device(input, input_np)
exe.tensor_memcpy_host_to_device(other, other_np)

# Launch the kernel and run for 1 iteration
exe.launch()
exe.run(1)

# Wait for the 1 iteration to finish and exit the kernel
exe.stop()

# Copy the output tensor back to host
output_np = np.zeros((1, 32), dtype=np.float16)
exe.tensor_memcpy_device_to_host(output_np, output)

# Test if the result is correct
assert np.allclose(output_np, input_np + other_np)

max_error = np.max(np.abs(output_np - (input_np + other_np)))
mean_error = np.mean(np.abs(output_np - (input_np + other_np)))

print("max error: ", max_error, "mean error: ", mean_error)
