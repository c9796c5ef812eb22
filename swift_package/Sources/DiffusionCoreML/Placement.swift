#if canImport(CoreML) || COREML_SHIM
  import DiffusionCore
  import Foundation

  #if COREML_SHIM
    import CoreMLShim
  #elseif canImport(CoreML)
    import CoreML
  #endif

  /// Where Core ML intends to run the operations of one package, by `MLComputePlan`. This is a
  /// prediction; only measurements count. Not run on a Mac.
  public struct Placement: Sendable, Equatable, Codable {
    /// Loads the plan of a compiled model.
    public typealias Load = @Sendable (URL, MLModelConfiguration) async throws -> MLComputePlan

    /// Name of the package, or of its function.
    public let package: String
    /// Number of operations by preferred device: cpu, gpu, neuralEngine or unknown.
    public let operations: [String: Int]
    /// Share of the estimated cost by device. The shares add up to 1; empty if there is no estimate.
    public let cost: [String: Double]
    /// Number of operations that the Neural Engine cannot run, by operator.
    public let notOnNeuralEngine: [String: Int]

    /// Reads the plan of a package with the settings that ``CoreMLRuntime`` would use.
    ///
    /// - Parameters:
    ///   - computeUnits: nil: the manifest's proposal for the package.
    ///   - load: loads a plan; `MLComputePlan.load(contentsOf:configuration:)` by default.
    public init(
      of package: Manifest.Package, models: CompiledModels,
      computeUnits: Manifest.ComputeUnits? = nil,
      load: Load = { try await MLComputePlan.load(contentsOf: $0, configuration: $1) }
    ) async throws {
      let url = try await models.url(of: package)
      let function = models.bundle.manifest.function(of: package)
      let plan: MLComputePlan
      do {
        plan = try await load(url, MLModelConfiguration(computeUnits ?? package.compute))
      } catch {
        throw MatryoshkaError.packageFailed(
          package: package.name, reason: "has no compute plan (\(error.cause))")
      }
      guard case .program(let program) = plan.modelStructure,
        let block = (function.map { program.functions[$0] } ?? program.functions.first?.value)?.block
      else {
        throw MatryoshkaError.packageFailed(package: package.name, reason: "has no such program")
      }
      self.package = package.name
      var count = Count()
      count.add(block, plan)
      operations = count.operations
      let sum = count.cost.values.reduce(0, +)
      cost = sum > 0 ? count.cost.mapValues { $0 / sum } : [:]
      notOnNeuralEngine = count.refused
    }

    private struct Count {
      var operations: [String: Int] = [:]
      var cost: [String: Double] = [:]
      var refused: [String: Int] = [:]

      mutating func add(_ block: MLModelStructure.Program.Block, _ plan: MLComputePlan) {
        for operation in block.operations {
          for inner in operation.blocks { add(inner, plan) }
          guard let usage = plan.deviceUsage(for: operation) else { continue }  // a constant
          let device = name(of: usage.preferred)
          operations[device, default: 0] += 1
          if let weight = plan.estimatedCost(of: operation)?.weight {
            cost[device, default: 0] += weight
          }
          if !usage.supported.contains(where: { name(of: $0) == "neuralEngine" }) {
            refused[operation.operatorName, default: 0] += 1
          }
        }
      }
    }

    /// The compute devices of this machine, from `MLComputeDevice.allComputeDevices`.
    public static var devices: [String] { MLComputeDevice.allComputeDevices.map(name(of:)) }
  }

  private func name(of device: MLComputeDevice) -> String {
    switch device {
    case .cpu: "cpu"
    case .gpu: "gpu"
    case .neuralEngine: "neuralEngine"
    #if !COREML_SHIM
      @unknown default: "unknown"
    #endif
    }
  }
#endif
