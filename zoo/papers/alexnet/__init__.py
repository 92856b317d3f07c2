from .model import AlexNet, CifarNet, OneTowerAlexNet, alexnet, alexnet_one_tower, cifar_relu, cifar_tanh, local_response_norm

__all__ = ["AlexNet", "CifarNet", "OneTowerAlexNet", "alexnet", "alexnet_one_tower", "cifar_relu", "cifar_tanh", "local_response_norm"]
