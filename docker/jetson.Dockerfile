# SPDX-License-Identifier: Apache-2.0
# UNTESTED. Jetson Orin with JetPack 6 (Ubuntu 22.04): ROS 2 Humble, TensorRT from JetPack.
#   docker build -f docker/jetson.Dockerfile -t blabberseg_ros .
#   docker run --rm --runtime nvidia --network host blabberseg_ros
FROM nvcr.io/nvidia/l4t-jetpack:r36.4.0

SHELL ["/bin/bash", "-c"]
ENV DEBIAN_FRONTEND=noninteractive
RUN apt-get update && apt-get install -y --no-install-recommends curl gnupg \
    && curl -sSL https://raw.githubusercontent.com/ros/rosdistro/master/ros.key \
        -o /usr/share/keyrings/ros-archive-keyring.gpg \
    && echo "deb [signed-by=/usr/share/keyrings/ros-archive-keyring.gpg] \
http://packages.ros.org/ros2/ubuntu jammy main" > /etc/apt/sources.list.d/ros2.list \
    && apt-get update && apt-get install -y --no-install-recommends \
        ros-humble-ros-base python3-colcon-common-extensions python3-pip python3-rosdep \
    && rosdep init && rosdep update --rosdistro humble

WORKDIR /ws/src/blabberseg_ros
COPY . .
# ONNX Runtime for JetPack's CUDA is NVIDIA's own build; the wheel on PyPI for aarch64 has no CUDA.
ARG ONNXRUNTIME_INDEX=https://pypi.jetson-ai-lab.io/jp6/cu126
RUN rosdep install -y --ignore-src --rosdistro humble --from-paths . interfaces \
    && pip3 install --no-cache-dir 'numpy<2' ftfy safetensors tokenizers \
    && pip3 install --no-cache-dir --index-url "${ONNXRUNTIME_INDEX}" onnxruntime-gpu
RUN source /opt/ros/humble/setup.bash \
    && cd /ws && colcon build --base-paths src/blabberseg_ros src/blabberseg_ros/interfaces

CMD ["bash", "-c", "source /ws/install/setup.bash && \
     exec ros2 launch blabberseg_ros aerialview.launch.py"]
