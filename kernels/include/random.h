// Random numbers that are a function of where they are used: the same on every device, whoever
// computes them (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).

struct ark_random {
  uint32_t word[4];
};

// Philox4x32 with 10 rounds: 128 random bits for a counter of 128 bits and a key of 64.
ARK_FN ark_random ark_philox(ark_random counter, uint32_t key_low, uint32_t key_high) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t even = uint64_t(0xD2511F53u) * counter.word[0];
    const uint64_t odd = uint64_t(0xCD9E8D57u) * counter.word[2];
    counter = {{uint32_t(odd >> 32) ^ counter.word[1] ^ key_low, uint32_t(odd),
                uint32_t(even >> 32) ^ counter.word[3] ^ key_high, uint32_t(even)}};
    key_low += 0x9E3779B9u;
    key_high += 0xBB67AE85u;
  }
  return counter;
}
