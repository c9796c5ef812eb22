// Core ML's declarations of devices and plans; see CoreMLShim.swift.

import Foundation

/// https://developer.apple.com/documentation/coreml/mloptimizationhints-swift.struct
public struct MLOptimizationHints {
  /// https://developer.apple.com/documentation/coreml/mloptimizationhints-swift.struct/reshapefrequency-swift.enum
  public enum ReshapeFrequency { case frequent, infrequent }
  /// https://developer.apple.com/documentation/coreml/mloptimizationhints-swift.struct/specializationstrategy-swift.enum
  public enum SpecializationStrategy { case `default`, fastPrediction }

  public var reshapeFrequency = ReshapeFrequency.frequent
  public var specializationStrategy = SpecializationStrategy.default

  public init() {}
}

/// https://developer.apple.com/documentation/coreml/mlcpucomputedevice
public final class MLCPUComputeDevice {
  public init() {}
}

/// https://developer.apple.com/documentation/coreml/mlgpucomputedevice
public final class MLGPUComputeDevice {
  public init() {}
}

/// https://developer.apple.com/documentation/coreml/mlneuralenginecomputedevice
public final class MLNeuralEngineComputeDevice {
  public init() {}
}

/// https://developer.apple.com/documentation/coreml/mlcomputedevice
public enum MLComputeDevice {
  case cpu(MLCPUComputeDevice)
  case gpu(MLGPUComputeDevice)
  case neuralEngine(MLNeuralEngineComputeDevice)

  public static var allComputeDevices: [MLComputeDevice] { [.cpu(MLCPUComputeDevice())] }
}

/// https://developer.apple.com/documentation/coreml/mlmodelstructure-swift.enum
public enum MLModelStructure {
  /// https://developer.apple.com/documentation/coreml/mlmodelstructure-swift.enum/program
  public struct Program {
    public struct Function {
      public let block: Block

      public init(block: Block) { self.block = block }
    }

    public struct Block {
      public let operations: [Operation]

      public init(operations: [Operation]) { self.operations = operations }
    }

    public struct Operation {
      public let operatorName: String
      public let blocks: [Block]

      public init(operatorName: String, blocks: [Block] = []) {
        (self.operatorName, self.blocks) = (operatorName, blocks)
      }
    }

    public let functions: [String: Function]

    public init(functions: [String: Function]) { self.functions = functions }
  }

  case program(Program)
  case unsupported
}

/// https://developer.apple.com/documentation/coreml/mlcomputeplan-1w21n
public final class MLComputePlan {
  /// https://developer.apple.com/documentation/coreml/mlcomputeplan-1w21n/deviceusage
  public struct DeviceUsage {
    public let supported: [MLComputeDevice]
    public let preferred: MLComputeDevice

    public init(supported: [MLComputeDevice], preferred: MLComputeDevice) {
      (self.supported, self.preferred) = (supported, preferred)
    }
  }

  /// https://developer.apple.com/documentation/coreml/mlcomputeplan-1w21n/cost
  public struct Cost {
    public let weight: Double

    public init(weight: Double) { self.weight = weight }
  }

  public let modelStructure: MLModelStructure
  private let usage: (MLModelStructure.Program.Operation) -> (DeviceUsage, Cost)?

  /// Only in the shim: the plan's answer for each operation.
  public init(
    modelStructure: MLModelStructure,
    usage: @escaping (MLModelStructure.Program.Operation) -> (DeviceUsage, Cost)?
  ) {
    (self.modelStructure, self.usage) = (modelStructure, usage)
  }

  public static func load(
    contentsOf url: URL, configuration: MLModelConfiguration
  ) async throws -> MLComputePlan {
    throw CocoaError(.featureUnsupported)
  }

  public func deviceUsage(for operation: MLModelStructure.Program.Operation) -> DeviceUsage? {
    usage(operation)?.0
  }

  public func estimatedCost(of operation: MLModelStructure.Program.Operation) -> Cost? {
    usage(operation)?.1
  }
}
