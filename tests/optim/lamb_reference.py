# SPDX-License-Identifier: Apache-2.0
"""LAMB written down once more, one tensor and one step at a time, in float64."""

import torch


class ReferenceLamb:
    def __init__(self, weights, *, lr, betas, eps, weight_decay, trust):
        self.weights = [weight.detach().double().clone() for weight in weights]
        self.means = [torch.zeros_like(weight) for weight in self.weights]
        self.variances = [torch.zeros_like(weight) for weight in self.weights]
        self.options = (lr, *betas, eps, weight_decay)
        self.trust = trust
        self.count = 0

    def step(self, gradients):
        self.count += 1
        lr, beta1, beta2, eps, decay = self.options
        bias1, bias2 = 1 - beta1**self.count, 1 - beta2**self.count
        for index, gradient in enumerate(gradients):
            g, w = gradient.double(), self.weights[index]
            m = self.means[index] = beta1 * self.means[index] + (1 - beta1) * g
            v = self.variances[index] = beta2 * self.variances[index] + (1 - beta2) * g * g
            if self.trust == "deepspeed":
                u, rate = m / (v.sqrt() + eps) + decay * w, lr * bias2**0.5 / bias1
            else:
                u, rate = (m / bias1) / ((v / bias2).sqrt() + eps) + decay * w, lr
            self.weights[index] = w - rate * self.ratio(float(w.norm()), float(u.norm()), decay) * u

    def ratio(self, weight, update, decay):
        if weight == 0 or update == 0 or (self.trust == "nvlamb" and decay == 0):
            return 1.0
        if self.trust == "deepspeed":
            return min(max(weight / update, 0.01), 10.0)
        return weight / update
