// The declarations of Core AI that the adapters use, so that the adapters compile and their plumbing
// can be tested without Core AI. A pass proves consistency with these declarations alone; none of it
// was run on a Mac. Each declaration follows the page of Apple's documentation beside it, down to the
// lifetimes of views, which the compiler checks here as it does there.

import Foundation
import Synchronization

/// https://developer.apple.com/documentation/coreai/computeunitkind
public enum ComputeUnitKind: Hashable, Sendable {
  case cpu, gpu, neuralEngine
}

/// https://developer.apple.com/documentation/coreai/specializationoptions
public struct SpecializationOptions: Hashable, Sendable {
  public static let `default` = SpecializationOptions(.nothing)
  public static let cpuOnly = SpecializationOptions(.cpuOnly)

  private enum Wish: Hashable { case nothing, cpuOnly, unit(ComputeUnitKind) }
  private let wish: Wish

  private init(_ wish: Wish) { self.wish = wish }

  public init(preferredComputeUnitKind: ComputeUnitKind) { wish = .unit(preferredComputeUnitKind) }
}

/// https://developer.apple.com/documentation/coreai/aimodelcache
public final class AIModelCache: Sendable {
  public static let `default` = AIModelCache { _, _ in throw CocoaError(.featureUnsupported) }

  /// Only in the shim: the functions by name that a package has with some options.
  public typealias Make = @Sendable (URL, SpecializationOptions) async throws -> [String: Program]

  /// Only in the shim: every question and every specialization, in order.
  public struct Event: Hashable, Sendable {
    public enum Kind: Sendable { case lookup, specialization }

    public let kind: Kind
    public let path: String
    public let options: SpecializationOptions
  }

  private struct Key: Hashable { let url: URL, options: SpecializationOptions }

  private let make: Make
  private let entries = Mutex<[Key: AIModel]>([:])
  private let seen = Mutex<[Event]>([])

  /// Only in the shim: a cache whose packages are made here.
  public init(make: @escaping Make) { self.make = make }

  /// Only in the shim.
  public var events: [Event] { seen.withLock { $0 } }

  /// https://developer.apple.com/documentation/coreai/aimodelcache/policy
  public struct Policy: Sendable {
    public static let `default` = Policy()
  }

  public func model(for url: URL, options: SpecializationOptions) throws -> AIModel? {
    note(.lookup, url, options)
    return entries.withLock { $0[Key(url: url, options: options)] }
  }

  func specialized(_ url: URL, _ options: SpecializationOptions) async throws -> AIModel {
    note(.specialization, url, options)
    let model = AIModel(try await make(url, options))
    entries.withLock { $0[Key(url: url, options: options)] = model }
    return model
  }

  private func note(_ kind: Event.Kind, _ url: URL, _ options: SpecializationOptions) {
    let event = Event(kind: kind, path: url.path, options: options)
    seen.withLock { $0.append(event) }
  }
}

/// https://developer.apple.com/documentation/coreai/aimodel
public struct AIModel: Sendable {
  private let programs: [String: Program]

  init(_ programs: [String: Program]) { self.programs = programs }

  @discardableResult
  public static func specialize(
    contentsOf modelURL: URL, options: SpecializationOptions = .default,
    cache: AIModelCache = .default, cachePolicy: AIModelCache.Policy = .default
  ) async throws -> AIModel {
    try await cache.specialized(modelURL, options)
  }

  public func loadFunction(named functionName: String) throws -> InferenceFunction? {
    guard let program = programs[functionName] else { return nil }
    if let failure = program.loadFailure { throw failure }
    return InferenceFunction(program)
  }
}

/// https://developer.apple.com/documentation/coreai/inferencefunctiondescriptor
public struct InferenceFunctionDescriptor: Sendable {
  let inputs: [String: InferenceValue.Descriptor]
  let outputs: [String: InferenceValue.Descriptor]

  public var inputNames: [String] { Array(inputs.keys) }
  public var outputNames: [String] { Array(outputs.keys) }

  public func inputDescriptor(of inputName: String) -> InferenceValue.Descriptor? { inputs[inputName] }
  public func outputDescriptor(of outputName: String) -> InferenceValue.Descriptor? { outputs[outputName] }
}

/// https://developer.apple.com/documentation/coreai/inferencevalue
public struct InferenceValue: ~Copyable {
  private let array: NDArray

  init(_ array: NDArray) { self.array = array }

  public var ndArray: NDArray? { consuming get { array } }

  /// https://developer.apple.com/documentation/coreai/inferencevalue/descriptor
  public enum Descriptor: Sendable {
    case image
    case ndArray(NDArrayDescriptor)
  }
}

/// Only in the shim: what a function computes.
public struct Program: Sendable {
  /// From the inputs to every number of an output, by its name, in row-major order.
  public typealias Body = @Sendable ([String: NDArray]) async throws -> [String: [Float]]

  let descriptor: InferenceFunctionDescriptor
  let loadFailure: (any Error)?
  let body: Body

  public init(
    inputs: [String: InferenceValue.Descriptor], outputs: [String: InferenceValue.Descriptor],
    loadFailure: (any Error)? = nil, body: @escaping Body
  ) {
    descriptor = InferenceFunctionDescriptor(inputs: inputs, outputs: outputs)
    (self.loadFailure, self.body) = (loadFailure, body)
  }
}
