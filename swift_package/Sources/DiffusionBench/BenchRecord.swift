import Foundation
import MatryoshkaDiffusion

/// A line of a result file for `mdm doctor`, as defined by `conversion/device/result.schema.json`.
/// Encode it with keys in snake case.
public struct BenchRecord: Encodable, Sendable {
  struct Load: Encodable, Sendable {
    let package: String
    let firstS: Double
    @Nullable var secondS: Double?
    let cold: Bool
  }
  /// Latencies of the whole step first, then of packages.
  public struct Latency: Encodable, Sendable {
    /// `step`, or `package NAME`.
    public let what: String
    /// The duration of every call.
    public let seconds: [Double]
    @Nullable var flops: Int? = nil
  }
  /// Whole pictures, from prompt to pixels.
  public struct Pictures: Encodable, Sendable {
    /// Number of steps of each picture.
    public let steps: Int
    /// Evaluations of the network per step: two with guidance.
    public let evaluations: Int
    /// The duration of each picture.
    public let seconds: [Double]
  }
  struct Conditions: Encodable, Sendable {
    @Nullable var thermal: String?
    @Nullable var lowPower: Bool?

    /// The conditions at this moment.
    static var now: Conditions {
      let state = ThermalState.current
      let known = state == .unknown ? nil : state.rawValue
      #if os(Linux)
        return Conditions(thermal: known, lowPower: nil)
      #else
        return Conditions(thermal: known, lowPower: ProcessInfo.processInfo.isLowPowerModeEnabled)
      #endif
    }
  }
  struct Machine: Encodable, Sendable {
    let system: String
    @Nullable var osVersion: String? = ProcessInfo.processInfo.operatingSystemVersionString
    let processor: String
    @Nullable var model: String? = Machine.said("hw.model")
    @Nullable var chip: String? = Machine.said("machdep.cpu.brand_string")
    @Nullable var cores: Int? = ProcessInfo.processInfo.processorCount
    @Nullable var memoryBytes: Int? = Int(ProcessInfo.processInfo.physicalMemory)
    @Nullable var python: String? = nil
    let libraries: [String: String] = [:]

    static var this: Machine {
      #if os(Linux)
        let system = "Linux"
      #elseif os(iOS)
        let system = "iOS"
      #else
        let system = "Darwin"
      #endif
      #if arch(arm64)
        return Machine(system: system, processor: "arm64")
      #else
        return Machine(system: system, processor: "x86_64")
      #endif
    }

    private static func said(_ name: String) -> String? {
      #if os(Linux)
        return nil
      #else
        var size = 0
        guard sysctlbyname(name, nil, &size, nil, 0) == 0, size > 1 else { return nil }
        var bytes = [UInt8](repeating: 0, count: size)
        guard sysctlbyname(name, &bytes, &size, nil, 0) == 0 else { return nil }
        return String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
      #endif
    }
  }

  let schema = 1
  let tool = "mdm-generate bench"
  let engine: String
  let id: String
  let bundle: String
  let digest: String
  let layout: String
  let variant: String
  let bytes: Int
  let units: String
  let kind = "pictures"
  let steps: [Int]
  let evaluations: Int
  let repetitions: Int
  let round = 1
  let precision: String
  let status = "measured"
  @Nullable var reason: String? = nil
  let started: String
  let seconds: Double
  @Nullable var commit: String? = nil
  let machine = Machine.this
  let before: Conditions
  let after: Conditions
  let violations: [String]
  let loads: [Load]
  /// Latencies of steps and packages.
  public let latencies: [Latency]
  /// Pictures with one number of steps.
  public let pictures: [Pictures]
  @Nullable var sustained: [Double]? = nil
  @Nullable var peakBytes: Int?
  @Nullable var placement: [Double]? = nil
  @Nullable var floor: [Double]? = nil
  @Nullable var quality: [Double]? = nil

  /// The record as a line of a result file.
  public func line() throws -> String {
    let encoder = JSONEncoder()
    encoder.keyEncodingStrategy = .convertToSnakeCase
    encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
    return String(decoding: try encoder.encode(self), as: UTF8.self)
  }

  /// Conditions that make the numbers measured in between doubtful.
  static func violations(_ before: Conditions, _ after: Conditions) -> [String] {
    var found: [String] = []
    if let thermal = before.thermal, thermal != "nominal" {
      found.append("the thermal state was \(thermal) at the start, not nominal")
    }
    if before.lowPower == true { found.append("low-power mode was on at the start") }
    if let thermal = after.thermal, ["serious", "critical"].contains(thermal) {
      found.append("the thermal state was \(thermal) at the end")
    }
    if after.lowPower == true, before.lowPower != true {
      found.append("low-power mode was switched on during the run")
    }
    return found
  }
}

/// Encodes nil as null; a synthesized encoder would leave the key out.
@propertyWrapper
struct Nullable<Value: Encodable & Sendable>: Encodable, Sendable {
  var wrappedValue: Value?

  init(wrappedValue: Value?) { self.wrappedValue = wrappedValue }

  func encode(to encoder: any Encoder) throws {
    var container = encoder.singleValueContainer()
    if let wrappedValue { try container.encode(wrappedValue) } else { try container.encodeNil() }
  }
}
