#if canImport(CoreAI) || COREAI_SHIM
  import DiffusionCore

  #if COREAI_SHIM
    import CoreAIShim
  #elseif canImport(CoreAI)
    import CoreAI
  #endif

  @available(macOS 27, iOS 27, tvOS 27, watchOS 27, visionOS 27, *)
  extension Manifest.ComputeUnits {
    /// What Core AI is asked for, in this order: the next is tried only if one cannot be loaded.
    ///
    /// Some packages cannot be loaded for the Neural Engine explicitly, but can where Core AI chooses.
    package var specializations: [SpecializationOptions] {
      switch self {
      case .cpuOnly: [.cpuOnly]
      case .cpuAndGPU: [SpecializationOptions(preferredComputeUnitKind: .gpu)]
      case .cpuAndNeuralEngine: [SpecializationOptions(preferredComputeUnitKind: .neuralEngine), .default]
      case .all: [.default]
      }
    }
  }
#endif
