// The integers of stdint.h as NVRTC knows them: it compiles without a C library.

#pragma once

typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long int64_t;
typedef unsigned long uint64_t;
typedef unsigned long uintptr_t;

static_assert(sizeof(int64_t) == 8 && sizeof(uintptr_t) == sizeof(void*), "Linux, 64 bit");
