/* The other file: the header's code, for handlers that are defined elsewhere. */
#define DUNLIN_SPLIT
#define DUNLIN_IMPLEMENTATION
#include "../dunlin.h"

DUNLIN_PLUGIN_EXTERN(dunlin_plugin)
