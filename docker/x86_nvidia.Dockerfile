# SPDX-License-Identifier: Apache-2.0
# UNTESTED. x86-64 with an NVIDIA GPU: ROS 2 Jazzy, ONNX Runtime on CUDA.
#   docker build -f docker/x86_nvidia.Dockerfile -t blabberseg_ros .
#   docker run --rm --gpus all --network host blabberseg_ros
FROM ros:jazzy-perception

SHELL ["/bin/bash", "-c"]
WORKDIR /ws/src/blabberseg_ros
COPY . .
# NumPy stays below 2: Jazzy's cv_bridge is built against NumPy 1.
RUN apt-get update && apt-get install -y --no-install-recommends python3-pip \
    && rosdep update && rosdep install -y --ignore-src --from-paths . interfaces \
    && pip install --break-system-packages --no-cache-dir \
        'numpy<2' ftfy safetensors tokenizers 'onnxruntime-gpu[cuda,cudnn]' \
    && rm -rf /var/lib/apt/lists/*
RUN source /opt/ros/jazzy/setup.bash \
    && cd /ws && colcon build --base-paths src/blabberseg_ros src/blabberseg_ros/interfaces

CMD ["bash", "-c", "source /ws/install/setup.bash && \
     exec ros2 launch blabberseg_ros aerialview.launch.py"]
