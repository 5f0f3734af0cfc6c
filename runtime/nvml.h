/* nvml.h: what the NVIDIA driver measures of one GPU: libnvidia-ml.so.1, opened at run time.
 *
 * Our own prototypes; nothing NVIDIA is needed to build.  That the library, the GPU or one of the
 * figures is not there is no error: figures that are not known are NAN.
 */
#ifndef DPOC_NVML_H
#define DPOC_NVML_H

#include "base.h"

typedef struct GpuFigures {
    double utilization;            /* percent of the driver's last period with any kernel running */
    double memory_used;            /* bytes, of all processes */
    double power;                  /* watts */
    double temperature;            /* degrees Celsius */
    double sm_clock, memory_clock; /* MHz */
    double throttled;              /* 1: clocks are held down by heat or by the power supply; 0 */
} GpuFigures;

typedef struct Nvml Nvml;
/* The GPU with this PCI bus id ("00000000:3B:00.0"): CUDA's numbers are not NVML's where
 * CUDA_VISIBLE_DEVICES is set.  NULL where that cannot be. */
Nvml *nvml_open(const char *bus_id);
void nvml_close(Nvml *nvml); /* NULL is allowed */
void nvml_read(Nvml *nvml, GpuFigures *out);
double nvml_energy(Nvml *nvml); /* joules since the driver was loaded; NAN: not counted */

#endif
